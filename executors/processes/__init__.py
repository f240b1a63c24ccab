"""``executor="processes"``: data parallelism over processes of one machine that share memory."""
