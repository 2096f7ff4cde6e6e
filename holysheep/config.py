"""Every default and limit of the engine, with its unit and its reason."""

VERSION = "0.1.0"

DEFAULT_BASE_URL = "https://api.holysheep.ai/v1"
DEFAULT_MODEL = "deepseek-v3.2"

# Credential defaults. 60 requests per minute and 20 in flight are what gateways of this kind
# commonly grant an ordinary key; both are the user's to change.
DEFAULT_REQUESTS_PER_MINUTE = 60
DEFAULT_TOKENS_PER_MINUTE = 0
DEFAULT_MAX_CONCURRENCY = 20
# As many calls as the Dify SDK runs at a time.
MAX_MAX_CONCURRENCY = 1000
MIN_KEY_LENGTH = 20
# A wrong value longer than this is not repeated in a message: it may be a key in the wrong field.
MAX_SHOWN_CHARS = 14

# Connections. As many kept alive as may be in flight, so that a burst does not dial anew, and 20
# at least. Idle ones are dropped after 30 s, before the 60 to 75 s that servers commonly allow.
MAX_CONNECTIONS = 100
MIN_KEPT_ALIVE = 20
KEEPALIVE_S = 30.0

# Time limits of single operations; the call's deadline cuts each of them. Connecting is quick or
# hopeless. An answer that comes whole may take minutes before its first byte, so it has the
# deadline only; a stream that says nothing for two minutes is taken for dead.
CONNECT_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 30.0
READ_TIMEOUT_S = 600.0
STREAM_SILENCE_S = 120.0

# An answer larger than this is no chat completion. Bounds what one broken server can make a
# process hold; a million tokens are about 5 MB.
MAX_RESPONSE_BYTES = 32 * 1024 * 1024
MAX_ERROR_BODY_BYTES = 1024 * 1024
# After [DONE] the rest of the body is read so that the connection can be used again, up to here.
MAX_DRAIN_BYTES = 64 * 1024
# ... and for so long: the caller has his answer already.
MAX_DRAIN_S = 0.1
# From the finish reason to [DONE]. The usage comes between them, and a gateway that first counts
# takes a moment; one that never says [DONE] keeps a caller who has seen the text waiting so long.
MAX_REST_S = 2.0

# What a model refuses is left out of its requests for so long. Then it is asked again, by a request
# that costs nothing if it is refused, so that a gateway that has changed is found out.
QUIRK_TTL_S = 3600.0

# Retry: full jitter over 0.5 s, 1 s, 2 s, 4 s, then 8 s.
BACKOFF_BASE_S = 0.5
BACKOFF_MAX_S = 8.0
# A 429 without a time: how long the whole credential holds back, doubled for each in a row.
PAUSE_BASE_S = 1.0
PAUSE_MAX_S = 30.0
# A gateway refuses at once: a call that was not refused for so long after a pause was accepted.
REFUSAL_S = 1.0
# The longest that a 429 for one model holds back the credential's calls to others.
SHARED_PAUSE_MAX_S = 60.0

# Circuit breaker.
BREAKER_FAILURES = 5
BREAKER_OPEN_S = 30.0
# A call with less time than this does not count where it runs out: one workflow's short timeout_s
# must not shut a slow model for all others.
BREAKER_PATIENCE_S = 10.0

# Cache.
CACHE_MAX_BYTES = 64 * 1024 * 1024
CACHE_MAX_ENTRIES = 1000
CACHE_TTL_S = 300
CACHE_MAX_TTL_S = 86_400

# Registry: credentials whose state one process keeps at the same time.
MAX_CREDENTIALS = 1000
# Breakers one credential's base URL may hold: model ids can come from a variable.
MAX_BREAKERS = 10_000

# Node inputs.
MAX_MAX_TOKENS = 1_000_000
MAX_INPUT_CHARS = 1_000_000
# What a prompt template makes of its values.
MAX_PROMPT_CHARS = 1_000_000
MAX_FILE_BYTES = 20 * 1024 * 1024
MAX_IMAGES = 20

# Default of timeout_s: everything that belongs to one call.
DEADLINE_S = 60

# Batches. More rows in flight than this is a load test, and a credential seldom allows it.
BATCH_CONCURRENCY = 10
MAX_BATCH_CONCURRENCY = 100
ROW_TIMEOUT_S = 60
# More are several batches: even at ten rows a second no deadline of a node is long enough.
MAX_BATCH_ROWS = 100_000
# Below the 600 s after which Dify ends a node, with time left to hand the results over.
BATCH_DEADLINE_S = 540
MAX_DEADLINE_S = 580
# The deadline of what has none.
A_YEAR_S = 365 * 86_400
# Results that may wait for an earlier row to end, so that they come out in order. Beyond, no new
# row is begun.
BATCH_AHEAD_BYTES = 16 * 1024 * 1024
BATCH_AHEAD_ROWS = 10_000
# How long after a deadline those who work are waited for: each has heard of the deadline itself.
DEADLINE_GRACE_S = 1.0
# Where a limit does not say when there is room again.
BATCH_PATIENCE_S = 1.0
PROGRESS_S = 0.5
# A row's answer fits into a result file, and that into what Dify takes.
MAX_ROW_CHARS = 4_000_000
INLINE_RESULTS = 1000
MAX_INLINE_RESULTS = 10_000
# No host message above 1 MB; the rest is for what stands round the value.
MAX_INLINE_BYTES = 950_000

# Chains and benchmarks.
CHAIN_TIMEOUT_S = 300
MAX_CHAIN_STEPS = 50
BENCHMARK_ITERATIONS = 20
MAX_BENCHMARK_ITERATIONS = 500
BENCHMARK_MAX_TOKENS = 128
BENCHMARK_DEADLINE_S = 300

# Cost estimates: more tokens or requests than this is a slip of the keyboard.
MAX_ESTIMATED = 1_000_000_000

# Ledger. Of calls that overlap, one writes for all, so often.
LEDGER_WRITE_S = 1.0
# A storage that failed is left alone for so long, doubled for each time in a row.
LEDGER_PAUSE_S = 1.0
LEDGER_PAUSE_MAX_S = 60.0
# What a call waits for an answer of the storage.
STORE_TIMEOUT_S = 3
# How often a process looks whether it is still in the day's index, and what others have spent on
# the month's earlier days.
LEDGER_ENTER_S = 10.0
LEDGER_MONTH_S = 600.0
# How long a call waits for its process to claim a part of a budget, and in a new process, which
# does not know yet what was spent.
LEDGER_CLAIM_S = 1.0
LEDGER_FIRST_CLAIM_S = 15.0
# How long a call waits that has been granted nothing although there seems to be room.
LEDGER_AGAIN_S = 0.05
# In the first minutes of a day what others have spent on the one before is read each time: their
# clocks may be behind.
LEDGER_CLOCKS_S = 300.0
# Putting past days together waits so long for the next invocation, and is begun anew after that.
LEDGER_FOLD_PATIENCE_S = 30.0
# An invocation that failed leaves the writing to the next one if that took longer.
LEDGER_HURRY_S = 0.1
# Rows that are kept apart: by a process on one day, of a folded day, of a whole month. A stored row
# takes 40 to 55 bytes, so thirteen months stay below 2 MB.
LEDGER_PROCESS_ROWS = 1000
LEDGER_DAY_ROWS = 150
LEDGER_MONTH_ROWS = 1000
LEDGER_MONTHS = 13
# Workspaces whose ledger one process keeps at the same time.
MAX_WORKSPACES = 1000
# For a budget, how long an answer without a limit is taken to be: more than models commonly write.
UNLIMITED_ANSWER_TOKENS = 32_768
# From this part of a budget on, a call is told how much is spent.
BUDGET_WARNING = 0.8

# Gateway endpoint. Below the 600 s after which Dify ends a request; a body of more than 10 MB is
# cut off there.
GATEWAY_TIMEOUT_S = 540
# What a client waits for its turn before it hears of the limit: most give up themselves soon after.
GATEWAY_QUEUE_S = 30
MAX_GATEWAY_BODY_BYTES = 10_000_000
MIN_TOKEN_LENGTH = 16
# A wrong token is answered after so long, and only so many of them are kept waiting at a time.
WRONG_TOKEN_PAUSE_S = 0.5
MAX_WRONG_TOKENS = 20

# State shared in Redis. What a call waits for one answer of it before it goes on without, and
# how many it may be asking at a time in one process.
REDIS_TIMEOUT_S = 0.25
REDIS_CONNECTIONS = 32
# While it is away: how long until it is tried again, doubled up to the longest.
REDIS_PAUSE_S = 0.25
REDIS_PAUSE_MAX_S = 2.0
# How often a subscription that hears nothing is asked whether it is alive.
REDIS_HEAR_S = 2.0
# Who holds a lease says so each third of it; when he is gone, others go on after its end.
LEASE_S = 3.0
# How long what a call came to waits for those who follow it.
LANDED_S = 10.0
# How long an expired answer is kept for those who want a stale one rather than an error.
REDIS_STALE_S = 3600.0
# Larger answers are not stored.
REDIS_MAX_VALUE_BYTES = 1024 * 1024
# How often the line at a credential's limits is looked through for those who have died in it.
LINE_SWEEP_S = 10.0
# A process whose callers wait says so as often; one that has not for so long is dead.
LINE_ALIVE_S = 3.0
LINE_DEAD_S = 10.0
# Clocks differ: who asks for his turn so much too early has it.
LINE_EARLY_S = 0.002
# Without news of a breaker, what is known of it holds so long.
BREAKER_KNOWN_S = 0.5
# What was spent on a day is needed until its month is over.
REDIS_SPEND_S = 40 * 86_400.0
# What was counted is kept as long as the ledger keeps it, and a month more.
REDIS_LEDGER_S = 14 * 31 * 86_400

# Streaming to the host: each message costs it time, so a fast stream is sent in pieces.
STREAM_PIECE_S = 0.05
# No single host message above this many characters of text (the daemon cuts lines at 5 MB).
MAX_PIECE_CHARS = 256 * 1024
