"""State that several processes and machines share, in Redis.

Everything here stands in for a part of the engine that is otherwise in the process's own memory,
behind the same interface: ``answers`` for the cache and single-flight, ``limits`` for the limiter,
``breakers``, and ``spending`` for budgets; ``backend`` puts them together. Each decision is one Lua
script (``lua/``), atomic and on the server's clock. Redis never fails a call: while it is ``Away``
(see ``link``) each part goes on with its own process's state.

Keys begin with ``holysheep:1:``, and those of one credential, or of one breaker, have one hash tag.
They hold hashes only: no key, no URL, no text of a prompt.
"""
