confs = {"NN-ratio": {"output": "of hloc"}}
