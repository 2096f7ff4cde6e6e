"""``python -m devtools.upstream``: see ``server``."""

from devtools.upstream.server import main

main()
