"""Tickets made small enough to ship: shared values, Huffman codes, and the file that holds them."""
