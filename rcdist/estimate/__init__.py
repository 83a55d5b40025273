"""What a configuration takes before it runs: parameters, FLOPs, memory, bytes on the wire, time and money."""
