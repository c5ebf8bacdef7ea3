"""Every mutation: each tuple of them that a module here holds.

To add one: a `Mutation` in your room's tuple. `old` must stand exactly once in the file, so that this list cannot rot.
"""

from mutations import inputs, judgements, loops, models, numbers, profiles, recipes, scorers, serving, studio
from mutations.kinds import Mutation

MUTATIONS: tuple[Mutation, ...] = tuple(
    mutation
    for module in (numbers, judgements, models, recipes, scorers, inputs, loops, profiles, serving, studio)
    for name, found in vars(module).items()
    if name.isupper()
    for mutation in found
)
