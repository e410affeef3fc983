"""What the other packages stand on: clocks, hosts that wait, interruption, forking, locked files, the machine."""
