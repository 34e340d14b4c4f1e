"""The site of the project's documentation: `make docs` builds it, without a network.

hooks       what MkDocs calls: which pages there are, and where links lead
references  pages that are written from the code: commands, settings, policy, modules
notebooks   notebooks, run, as pages
fences      code blocks of Markdown
doctests    examples in docstrings, as Markdown shows code
"""
