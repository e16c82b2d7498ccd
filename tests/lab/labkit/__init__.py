"""The lab: real servers in containers, as hosts on a network of their own, for tests and benchmarks. `../README.md` is its manual."""
