"""The commands of ``tombola study``, a file each."""
