"""The recurrent state of Mamba-2 mixers: scored, held under keep rules, and cut away.

A unit is a state channel (`keepset.sites.state`). Everything here sees a mixer through its scan:
what is written (B), what is read (C), and the state H between them.
"""
