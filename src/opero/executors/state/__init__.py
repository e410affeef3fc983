"""What executors hold: state in this process, or in a locked file that processes of a machine share."""
