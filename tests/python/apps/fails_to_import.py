raise RuntimeError("on purpose while importing")
