"""How gists fail and how much they hold: what is measured beyond predictions, its plots, and advice."""
