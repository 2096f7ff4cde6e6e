"""What nodes and endpoints share of the plugin process that they run in."""
