"""Delivery reports and complaints: what they say, whom they are about, and what follows from them."""
