"""The plugin process: Dify's daemon runs ``python -m main`` in this folder."""

import gc

# The SDK comes before all that waits for anything: it replaces blocking calls with cooperative ones
# at import, and whatever was imported before it would keep the blocking ones.
import yaml
from dify_plugin import DifyPluginEnv, Plugin
from dify_plugin.core.runtime import Session

from holysheep.registry import shared_registry
from host.logs import send_logs

# The SDK reads the declarations with PyYAML's parser in Python, which takes a tenth of the time
# until the plugin has registered. The one in C reads the same, by the same rules.
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

plugin = Plugin(DifyPluginEnv())

if __name__ == "__main__":
    # The SDK imports a dozen modules when it builds its first session; done here, the first call
    # is as quick as the next.
    Session.empty_session()
    send_logs()
    shared_registry()
    # What start-up has built lives as long as the process; the collector need not look at it again.
    gc.collect()
    gc.freeze()
    plugin.run()
