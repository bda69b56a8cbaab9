"""How fast it is: suites that time the engine against what people would use instead, and the page made of them."""
