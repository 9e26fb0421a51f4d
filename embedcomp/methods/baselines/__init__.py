"""Methods that a plan by default does without, one file each.

They are compared with in every comparison, and a plan may use those that are named; docs/methods.md
says what each is worth.
"""
