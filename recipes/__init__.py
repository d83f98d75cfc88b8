"""How the models in demo/ were made: one command a model, on two cores."""
