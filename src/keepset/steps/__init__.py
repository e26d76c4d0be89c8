"""The steps of the study: each reads files, calls the library, and writes one result.

The workflow's scripts call these and nothing else; so can a person, from Python. One module per
stage, so that a change of code reruns the stages that use it and no other.
"""
