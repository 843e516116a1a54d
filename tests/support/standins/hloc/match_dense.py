confs = {"loftr": {"output": "of hloc"}}
