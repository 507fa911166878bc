//! What runs inside of Redis, each whole or not at all.
//!
//! Must hold: a script names all keys that it touches, and they are in one hash slot.

use std::sync::LazyLock;

use redis::Script;

/// `KEYS`: events, lease. `ARGV`: owner, lease (ms), time to live (ms), the last entry that the
/// claimer knows (empty: whoever writes is driven out). Gives the new epoch; 0 if somebody else
/// writes, or has written since.
pub(super) static CLAIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        if ARGV[4] ~= '' and redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
        local last = '0-0'
        if redis.call('EXISTS', KEYS[1]) == 1 then
            local info = redis.call('XINFO', 'STREAM', KEYS[1])
            for i = 1, #info, 2 do
                if info[i] == 'last-generated-id' then last = info[i + 1] end
            end
        end
        if ARGV[4] ~= '' and ARGV[4] ~= last then return 0 end
        local now = redis.call('TIME')
        local epoch = math.max(
            tonumber(string.match(last, '^(%d+)')) + 1,
            now[1] * 1000 + math.floor(now[2] / 1000))
        local id = string.format('%d', epoch)
        redis.call('XADD', KEYS[1], id .. '-0', 'e', last)
        redis.call('PEXPIRE', KEYS[1], ARGV[3])
        redis.call('SET', KEYS[2], id .. ':' .. ARGV[1], 'PX', ARGV[2])
        redis.call('PUBLISH', KEYS[1], '')
        return epoch",
    )
});

/// `KEYS`: events. `ARGV`: epoch, number of the first entry, time to live (ms), most entries, number
/// of the oldest entry of this epoch that stays, entries. Gives one more than the entries that were
/// trimmed; 0 if another epoch has begun, -1 if the log is gone.
pub(super) static APPEND: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
        local info = redis.call('XINFO', 'STREAM', KEYS[1])
        local last
        for i = 1, #info, 2 do
            if info[i] == 'last-generated-id' then last = info[i + 1] end
        end
        local epoch, stored = string.match(last, '^(%d+)-(%d+)$')
        if epoch ~= ARGV[1] then return 0 end
        stored = tonumber(stored)
        local number = tonumber(ARGV[2])
        for i = 6, #ARGV do
            if number > stored then
                redis.call('XADD', KEYS[1], string.format('%s-%d', epoch, number), 'e', ARGV[i])
            end
            number = number + 1
        end
        local trimmed = redis.call('XTRIM', KEYS[1], 'MAXLEN', ARGV[4])
        if ARGV[5] ~= '0' then
            trimmed = trimmed + redis.call('XTRIM', KEYS[1], 'MINID', epoch .. '-' .. ARGV[5])
        end
        redis.call('PEXPIRE', KEYS[1], ARGV[3])
        redis.call('PUBLISH', KEYS[1], '')
        return 1 + trimmed",
    )
});

/// `KEYS`: events, lease. `ARGV`: position, most bytes. Gives whether somebody writes, the last
/// position (empty: no log), and positions and entries in turn.
pub(super) static READ: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local held = redis.call('EXISTS', KEYS[2])
        if redis.call('EXISTS', KEYS[1]) == 0 then return {held, '', {}} end
        local info = redis.call('XINFO', 'STREAM', KEYS[1])
        local last
        for i = 1, #info, 2 do
            if info[i] == 'last-generated-id' then last = info[i + 1] end
        end
        local found, bytes, after, most = {}, 0, ARGV[1], tonumber(ARGV[2])
        while true do
            local page = redis.call('XRANGE', KEYS[1], '(' .. after, '+', 'COUNT', 16)
            for _, entry in ipairs(page) do
                local payload = entry[2][2]
                if bytes > 0 and bytes + #payload > most then return {held, last, found} end
                bytes = bytes + #payload
                found[#found + 1] = entry[1]
                found[#found + 1] = payload
                after = entry[1]
            end
            if #page < 16 then return {held, last, found} end
        end",
    )
});

/// `KEYS`: events, lease. `ARGV`: owner, epoch, lease (ms). Gives 0 if somebody else writes. A store
/// that is full renews what is there, since that takes no room.
pub(super) static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local mine = ARGV[2] .. ':' .. ARGV[1]
        local holder = redis.call('GET', KEYS[2])
        if holder and holder ~= mine then return 0 end
        if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
        local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
        if not last[1] or string.match(last[1][1], '^(%d+)') ~= ARGV[2] then return 0 end
        if holder then
            redis.call('PEXPIRE', KEYS[2], ARGV[3])
        else
            redis.call('SET', KEYS[2], mine, 'PX', ARGV[3])
        end
        return 1",
    )
});

/// `KEYS`: events, lease. `ARGV`: owner, epoch.
pub(super) static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        if redis.call('GET', KEYS[2]) == ARGV[2] .. ':' .. ARGV[1] then
            redis.call('DEL', KEYS[2])
            redis.call('PUBLISH', KEYS[1], '')
        end
        return 1",
    )
});

/// `KEYS`: poller, wants, wanted by parts. `ARGV`: owner, lease (ms). Gives 1 if this owner polls,
/// the number of asks, and the most that others want (0: nothing).
pub(super) static LOOK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local poller = redis.call('GET', KEYS[1])
        if poller and poller ~= ARGV[1] then return {0, 0, 0} end
        redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
        local wanted = 0
        for i = 3, #KEYS do
            if redis.call('EXISTS', KEYS[i]) == 1 then wanted = i - 2 end
        end
        return {1, tonumber(redis.call('GET', KEYS[2]) or '0'), wanted}",
    )
});

/// `KEYS`: wants, wanted. `ARGV`: how long (ms), channel. Gives the number of the ask.
pub(super) static ASK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local asks = redis.call('INCR', KEYS[1])
        redis.call('PEXPIRE', KEYS[1], 3600000)
        redis.call('SET', KEYS[2], '1', 'PX', ARGV[1])
        redis.call('PUBLISH', ARGV[2], '')
        return asks",
    )
});

/// `KEYS`: state, poller. `ARGV`: owner, asks, state, how long (ms), channel. Gives 0 if somebody
/// else polls.
pub(super) static SHOW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
        redis.call('HINCRBY', KEYS[1], 'number', 1)
        redis.call('HSET', KEYS[1], 'asks', ARGV[2], 'state', ARGV[3])
        redis.call('PEXPIRE', KEYS[1], ARGV[4])
        redis.call('PUBLISH', ARGV[5], '')
        return 1",
    )
});

/// `KEYS`: poller. `ARGV`: owner, channel.
pub(super) static STEP_DOWN: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        if redis.call('GET', KEYS[1]) == ARGV[1] then
            redis.call('DEL', KEYS[1])
            redis.call('PUBLISH', ARGV[2], '')
        end
        return 1",
    )
});

/// `KEYS`: create, maker. `ARGV`: maker, channel, fingerprint, lease (ms), how long a create is
/// remembered (ms). Gives whose turn it is (0: another request's, 1: another maker's, 2: this
/// maker's, 3: nobody's), how long the lease is yet (ms), the thread, and what was made.
pub(super) static CREATE_TURN: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        local known = redis.call('HMGET', KEYS[1], 'fingerprint', 'thread', 'id')
        if known[1] and known[1] ~= ARGV[3] then return {0, 0, '', ''} end
        if known[3] then return {3, 0, known[2] or '', known[3]} end
        local maker = redis.call('GET', KEYS[2])
        if maker and maker ~= ARGV[1] then return {1, redis.call('PTTL', KEYS[2]), '', ''} end
        redis.call('HSET', KEYS[1], 'fingerprint', ARGV[3])
        redis.call('PEXPIRE', KEYS[1], ARGV[5])
        redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[4])
        return {2, 0, known[2] or '', ''}",
    )
});

/// `KEYS`: create, maker. `ARGV`: maker, channel, fingerprint, thread.
pub(super) static CREATE_BEGUN: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        if redis.call('GET', KEYS[2]) == ARGV[1] then
            redis.call('HSET', KEYS[1], 'thread', ARGV[4])
        end
        return 1",
    )
});

/// `KEYS`: create, maker. `ARGV`: maker, channel, fingerprint, thread, what was made, how long it is
/// remembered (ms). What was made first stays.
pub(super) static CREATE_MADE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
        local known = redis.call('HMGET', KEYS[1], 'fingerprint', 'id')
        if not known[2] and (not known[1] or known[1] == ARGV[3]) then
            redis.call(
                'HSET', KEYS[1], 'fingerprint', ARGV[3], 'thread', ARGV[4], 'id', ARGV[5])
            redis.call('PEXPIRE', KEYS[1], ARGV[6])
        end
        redis.call('PUBLISH', ARGV[2], '')
        return 1",
    )
});

/// `KEYS`: create, maker. `ARGV`: maker, channel. What was not made is forgotten, unless it has a
/// thread.
pub(super) static CREATE_LEFT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
        if redis.call('GET', KEYS[2]) == ARGV[1] then
            redis.call('DEL', KEYS[2])
            local known = redis.call('HMGET', KEYS[1], 'thread', 'id')
            if not known[1] and not known[2] then redis.call('DEL', KEYS[1]) end
            redis.call('PUBLISH', ARGV[2], '')
        end
        return 1",
    )
});
