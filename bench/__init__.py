"""What is measured: throughput, quality, overhead, load, and searches against their peers, each one command."""
