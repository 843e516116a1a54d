confs = {"sift": {"output": "of hloc"}}
