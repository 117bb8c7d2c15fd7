//! Signs of life: that nobody hears of anything wrong must not mean that nobody is there to say it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_model::alert::Channel;
use holdfast_model::ids::ChannelName;
use holdfast_runtime::OnEnd;
use jiff::Timestamp;

use super::Turn;
use crate::core::Core;

/// The signs of life of one channel.
pub(super) struct Ping {
    pub(super) next: Instant,
    pub(super) failing_since: Option<Timestamp>,
    pub(super) last_error: Option<String>,
}

/// Why no sign of life is given now; none when all is well.
pub fn unwell(core: &Core) -> Option<String> {
    if let Some(part) = core.liveness.silent() {
        return Some(format!("{} gave no sign of life", part.as_str()));
    }
    let takes_messages = |name: &ChannelName| {
        core.definitions.current().fleet.channels.get(name).is_some_and(Channel::takes_messages)
    };
    let states = core.outbox.states();
    let failing = states.iter().find(|(name, state)| state.failing_since.is_some() && takes_messages(name));
    failing.map(|(name, _)| format!("channel {name} does not deliver"))
}

/// Gives a sign of life when one is due and all is well.
pub(super) fn ping(core: &Arc<Core>, name: ChannelName, channel: Channel, every: Duration) {
    let now = core.clock.monotonic();
    {
        let inner = core.outbox.inner.lock();
        let is_due = inner.pings.get(&name).is_none_or(|ping| ping.next <= now);
        if !is_due || inner.busy.contains(&name) {
            return;
        }
    }
    if let Some(reason) = unwell(core) {
        tracing::debug!(channel = %name, reason, "no sign of life is given");
        return;
    }
    let turn = Turn::take(core, &name);
    let first = Ping { next: now, failing_since: None, last_error: None };
    core.outbox.inner.lock().pings.entry(name.clone()).or_insert(first).next = now + every;
    let owner = core.clone();
    core.tasks.spawn(format!("ping {name}"), OnEnd::Isolated, async move {
        let _turn = turn;
        let stop = owner.tasks.token().clone();
        let message = crate::notify::test_message(&name, owner.clock.now());
        let result = stop.run_until_cancelled(owner.notifier.deliver(&channel, &[message])).await;
        let now = owner.clock.now();
        let mut inner = owner.outbox.inner.lock();
        if matches!(result, Some(Ok(_))) {
            inner.delivered.insert(name.clone(), now);
        }
        if let (Some(result), Some(ping)) = (result, inner.pings.get_mut(&name)) {
            match result {
                Ok(_) => (ping.failing_since, ping.last_error) = (None, None),
                Err(error) => {
                    ping.failing_since = ping.failing_since.or(Some(now));
                    ping.last_error = Some(error.text().to_owned());
                }
            }
        }
    });
}
