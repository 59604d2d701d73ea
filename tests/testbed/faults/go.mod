module stagenet.dev/testbed/faults

go 1.26.0
