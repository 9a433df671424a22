"""The trained model as one folder: save, load, predict; and the history of champions."""
