//! Resource gates: how busy the host of a source may be when its backup begins.

use std::time::Duration;

use holdfast_model::policy::{Resources, WhenBusy};
use holdfast_model::units::Percent;
use holdfast_model::{ErrorCode, Failure};
use holdfast_proto::v1;

/// What becomes of a run whose turn it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// It begins.
    Open,
    /// It begins although the host is too busy, for which this is the reason.
    Forced(String),
    /// It waits, for this reason.
    Wait(String),
    /// It is left out.
    Skip(Failure),
    /// It fails.
    Fail(Failure),
}

/// What is too much in use on a host; nothing when it is fit, or when it is not known how busy it is.
pub(super) fn too_busy(resources: &Resources, heartbeat: &v1::Heartbeat) -> Option<String> {
    let of_total = |free: u64, total: u64| (total > 0).then(|| 1.0 - (free.min(total) as f64 / total as f64));
    let memory = of_total(heartbeat.memory_available_bytes, heartbeat.memory_total_bytes);
    let disk = of_total(heartbeat.disk_free_bytes, heartbeat.disk_total_bytes);
    let over = |what: &str, used: Option<f64>, most: Option<Percent>| {
        let (used, most) = (used?, most?);
        let too_much = used > most.ratio();
        too_much.then(|| format!("{what} {:.0}% in use, at most {most} is allowed", used * 100.0))
    };
    over("memory", memory, resources.memory)
        .or_else(|| over("cpu", heartbeat.cpu_used, resources.cpu))
        .or_else(|| over("disk", disk, resources.disk))
}

/// What becomes of a run whose host is as busy as `busy` says, and was so for it `held_for` long.
pub(super) fn judge(resources: &Resources, busy: Option<String>, held_for: Duration) -> Gate {
    let Some(busy) = busy else { return Gate::Open };
    if held_for.as_secs() < u64::try_from(resources.wait.secs()).unwrap_or(0) {
        return Gate::Wait(busy);
    }
    let failure = || {
        Failure::new(ErrorCode::HostBusy, format!("the host was too busy for {}", resources.wait))
            .because(busy.clone())
    };
    match resources.then {
        WhenBusy::Run => Gate::Forced(busy),
        WhenBusy::Skip => Gate::Skip(failure()),
        WhenBusy::Fail => Gate::Fail(failure()),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_model::units::Span;

    use super::*;

    fn heartbeat(memory_free: u64, disk_free: u64, cpu_used: Option<f64>) -> v1::Heartbeat {
        v1::Heartbeat {
            memory_available_bytes: memory_free,
            memory_total_bytes: 1000,
            disk_free_bytes: disk_free,
            disk_total_bytes: 1000,
            cpu_used,
            ..v1::Heartbeat::default()
        }
    }

    fn limits() -> Resources {
        let percent = |text: &str| Some(text.parse().unwrap());
        Resources {
            memory: percent("80%"),
            cpu: percent("70%"),
            disk: percent("85%"),
            wait: Span::from_mins(5),
            ..Resources::default()
        }
    }

    #[test]
    fn a_host_is_too_busy_above_a_limit_and_not_at_it() {
        let busy = |memory, disk, cpu| too_busy(&limits(), &heartbeat(memory, disk, cpu));
        assert_eq!(busy(200, 150, Some(0.7)), None);
        assert_eq!(busy(190, 500, None).as_deref(), Some("memory 81% in use, at most 80% is allowed"));
        assert_eq!(busy(500, 100, Some(0.1)).as_deref(), Some("disk 90% in use, at most 85% is allowed"));
        assert_eq!(busy(500, 500, Some(0.95)).as_deref(), Some("cpu 95% in use, at most 70% is allowed"));
    }

    #[test]
    fn what_is_not_known_or_not_limited_keeps_nobody() {
        assert_eq!(too_busy(&limits(), &v1::Heartbeat::default()), None);
        assert_eq!(too_busy(&Resources::default(), &heartbeat(0, 0, Some(1.0))), None);
    }

    #[test]
    fn after_the_wait_the_policy_decides() {
        let after = |then, secs| {
            let resources = Resources { then, ..limits() };
            judge(&resources, Some("memory is full".to_owned()), Duration::from_secs(secs))
        };
        assert_eq!(after(WhenBusy::Skip, 299), Gate::Wait("memory is full".to_owned()));
        assert_eq!(after(WhenBusy::Run, 300), Gate::Forced("memory is full".to_owned()));
        let Gate::Skip(failure) = after(WhenBusy::Skip, 300) else { panic!() };
        assert_eq!(failure.to_string(), "[HF-4031] the host was too busy for 5m: memory is full");
        assert!(matches!(after(WhenBusy::Fail, 300), Gate::Fail(_)));
        assert_eq!(judge(&limits(), None, Duration::MAX), Gate::Open);
    }
}
