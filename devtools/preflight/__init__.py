"""The marketplace's rules, applied to the built package.

A rule is a function from the opened package to sentences, each about one thing that is wrong
(`rule.py`); a module holds those of one subject; `catalogue.py` lists the modules. `make package`
applies the rules; `make preflight` (`__main__.py`) also writes into the package what its owner
gives (`owner.py`), starts it (`start.py`), and tells what a reviewer will ask about (`notes.py`).

The rules are those of Sep 2026: of the marketplace's toolkit, of its reviewers, and of the plugin
daemon's own schema; where they differ, the strictest. Beside them stand those that this project
adds; their docstrings say why.
"""
