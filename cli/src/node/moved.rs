//! A worker's own address after it has changed: a new lease, or another network.
//!
//! Other nodes send to the address that this node has told of. When that is nobody's on this machine any more, the node
//! takes the one by which it reaches its managers. Managers stay what they are: raft knows them by their address.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    address::{Local, local_addresses, towards},
    daemon::Role,
    error::Result,
    init::daemon_config,
    member::Member,
    supervisor::Supervisor,
};

const LOOK: Duration = Duration::from_secs(2);
/// A lease that is renewed late, or a cable that is moved, brings the old address back.
const GONE_FOR: Duration = Duration::from_secs(10);

/// Follows this node's address for as long as the supervisor runs.
pub(super) async fn keep_address(supervisor: Arc<Supervisor>) {
    let mut gone_since = None;
    loop {
        sleep(LOOK).await;
        let Some((before, now)) = look(&supervisor) else {
            gone_since = None;
            continue;
        };
        if gone_since.get_or_insert_with(Instant::now).elapsed() < GONE_FOR {
            continue;
        }
        let Ok(_operation) = supervisor.begin() else { continue };
        if supervisor.member().as_ref() != Some(&before) {
            continue;
        }
        tracing::warn!(
            from = before.data_addr,
            to = now.data_addr,
            "this node's address changed; telling the managers"
        );
        if let Err(error) = take(&supervisor, now).await {
            tracing::warn!(%error, "cannot take this node's new address, will try again");
        }
    }
}

fn look(supervisor: &Supervisor) -> Option<(Member, Member)> {
    let before = supervisor.member()?;
    let now = moved(&before, &local_addresses().ok()?, towards)?;
    Some((before, now))
}

/// The worker says it with its next session; containers go on.
async fn take(supervisor: &Supervisor, member: Member) -> Result<()> {
    supervisor.write_config(Role::Worker, &daemon_config(&member, None))?;
    supervisor.become_member(member)?;
    supervisor.stop_daemon(Role::Worker).await;
    Ok(supervisor.start_daemon(Role::Worker)?)
}

/// The member with its new address, when the old one is none of this machine's any more.
fn moved(member: &Member, locals: &[Local], towards: impl Fn(SocketAddr) -> Option<IpAddr>) -> Option<Member> {
    let old: IpAddr = member.data_addr.parse().ok()?;
    let is_here = |ip: IpAddr| locals.iter().any(|local| local.ip == ip);
    if member.manager || is_here(old) {
        return None;
    }
    let managers = member.managers.iter().filter_map(|addr| addr.parse().ok());
    let new = managers.filter_map(towards).find(|ip| is_here(*ip))?;
    let mut next = Member { data_addr: new.to_string(), ..member.clone() };
    // One that was given on its own stays.
    if let Ok(advertised) = member.advertise_addr.parse::<SocketAddr>()
        && advertised.ip() == old
    {
        next.advertise_addr = SocketAddr::new(new, advertised.port()).to_string();
    }
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_takes_its_new_address() {
        let (old, new, nat) = ("192.0.2.7", "192.0.2.9", "203.0.113.1");
        // Its own addresses, how it reaches managers, where it would be reached; its addresses from then on.
        for (case, manager, here, way, advertised, want) in [
            ("as it was", false, vec![old], Some(old), old, None),
            ("one more", false, vec![old, new], Some(new), old, None),
            ("another", false, vec![new], Some(new), old, Some((new, new))),
            ("advertised on its own", false, vec![new], Some(new), nat, Some((new, nat))),
            ("none at all", false, vec![], None, old, None),
            ("no way to the managers", false, vec![new], None, old, None),
            ("only by the loopback", false, vec![new], Some("127.0.0.1"), old, None),
            ("a manager", true, vec![new], Some(new), old, None),
        ] {
            let member = Member {
                cluster_id: "c".into(),
                node_id: "n".into(),
                manager,
                hostname: "h".into(),
                advertise_addr: format!("{advertised}:2377"),
                listen_addr: "0.0.0.0:2377".into(),
                data_addr: old.into(),
                managers: vec!["manager:2377".into(), "192.0.2.1:2377".into()],
            };
            let locals: Vec<_> =
                here.iter().map(|ip| Local { interface: "eth0".into(), ip: ip.parse().unwrap() }).collect();
            let found = moved(&member, &locals, |_| way.map(|way| way.parse().unwrap()));
            let want = want.map(|(data, advertised)| Member {
                data_addr: data.into(),
                advertise_addr: format!("{advertised}:2377"),
                ..member.clone()
            });
            assert_eq!(found, want, "{case}");
        }
    }
}
