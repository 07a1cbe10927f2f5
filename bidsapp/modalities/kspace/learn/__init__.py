"""The input of networks that reconstruct, and what is learnt."""
