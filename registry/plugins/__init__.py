"""How packages join in: what a plugin registers, the hooks that ask for it, and the guarded loading of all plugins.

component   Component, Published, NetworkClass: what a plugin can register
hooks       one hook per kind, and the marker for a plugin's implementations
loading     every plugin tried alone; who owns which name; what failed, and why
faults      whose code an error came from
beginning   a package to begin a plugin with
"""
