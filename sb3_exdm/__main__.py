"""``python -m sb3_exdm``, the same as the command ``exdm``."""

from sb3_exdm.cli import main

main()
