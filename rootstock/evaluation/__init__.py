"""How good a model is and whether it is better than another: metrics, tests, pictures, reports."""
