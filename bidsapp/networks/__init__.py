"""Networks: a body that gives features and a head that reads one task from them."""
