"""Tools for developing the plugin: scripted gateway, demo, benchmarks, packaging. Not packaged."""
