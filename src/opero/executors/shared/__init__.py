"""Limits whose state several processes of a machine share: the same executors, with their state in a file.

An executor begins alone, and costs next to nothing. Once a map has worker processes, its executors move what they
count into a file each, and so do the workers': from then on a call that counts takes the file's lock for some
microseconds.
"""

from opero.executors.shared.limits import SharedLimits as SharedLimits
from opero.executors.shared.limits import share_limits as share_limits
from opero.executors.shared.state_file import StateFile as StateFile
