"""A statistical shape model of meshes that an evaluation wrote: mean, modes of variation, and how good they are."""
