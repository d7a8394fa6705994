"""Before torch is imported: OpenMP threads that sleep, as the command line has them."""

from qconvert.machine import settle

settle()
