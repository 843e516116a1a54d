"""Files that appear whole or not at all; hloc's layouts of HDF5, lists of pairs."""
