"""Scenes in blocks: trained one by one, joined into one model. What `gsopt partition` and its sisters do.

`division` says where the blocks are, `partition` is what a file knows of it, `scenes` writes each block as a
scene of its own; `runs` trains them, and `merging` joins what they left.
"""
