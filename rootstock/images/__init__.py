"""One file of an image into pixels: what a file is, whether it is whole, what its values mean; and batches of them."""
