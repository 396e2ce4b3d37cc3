//! A worker's own address after it has changed: a new lease, or another network.
//!
//! Other nodes send to the address that this node has told of. When it joined with the one that it chose by itself, and no
//! interface has that any more, the node takes the one by which it reaches its managers. An address that was given stays: it
//! may be one that this machine never had, in front of a NAT. Managers stay what they are: raft knows them by their address.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    address::{Local, all_addresses, local_addresses, towards},
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
    let now = moved(&before, &all_addresses().ok()?, &local_addresses().ok()?, towards)?;
    Some((before, now))
}

/// The worker says it with its next session; containers go on.
async fn take(supervisor: &Supervisor, member: Member) -> Result<()> {
    supervisor.write_config(Role::Worker, &daemon_config(&member, None))?;
    supervisor.become_member(member)?;
    supervisor.stop_daemon(Role::Worker).await;
    Ok(supervisor.start_daemon(Role::Worker)?)
}

/// The member with its new address, one of `locals`, when the old one is not among `all` of this machine's any more.
fn moved(
    member: &Member,
    all: &[IpAddr],
    locals: &[Local],
    towards: impl Fn(SocketAddr) -> Option<IpAddr>,
) -> Option<Member> {
    let old: IpAddr = member.data_addr.parse().ok()?;
    if member.manager || !member.chosen || all.contains(&old) {
        return None;
    }
    let managers = member.managers.iter().filter_map(|addr| addr.parse().ok());
    let new = managers.filter_map(towards).find(|ip| locals.iter().any(|local| local.ip == *ip))?;
    let with_new = |addr: &str| match addr.parse::<SocketAddr>() {
        Ok(addr) if addr.ip() == old => SocketAddr::new(new, addr.port()).to_string(),
        Ok(_) | Err(_) => addr.to_owned(),
    };
    Some(Member {
        data_addr: new.to_string(),
        advertise_addr: with_new(&member.advertise_addr),
        // Or it could not be a manager.
        listen_addr: with_new(&member.listen_addr),
        ..member.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "192.0.2.7";
    const NEW: &str = "192.0.2.9";
    const ANY: &str = "0.0.0.0";

    fn member(data: &str, listen: &str) -> Member {
        Member {
            cluster_id: "c".into(),
            node_id: "n".into(),
            manager: false,
            hostname: "h".into(),
            advertise_addr: format!("{data}:2377"),
            listen_addr: format!("{listen}:2377"),
            data_addr: data.into(),
            managers: vec!["manager:2377".into(), "192.0.2.1:2377".into()],
            chosen: true,
        }
    }

    #[test]
    fn a_worker_takes_its_new_address() {
        let before = |listen| member(OLD, listen);
        let given = Member { chosen: false, ..before(ANY) };
        // In front of a NAT: no interface ever has it.
        let nat = Member { chosen: false, ..member("203.0.113.1", ANY) };
        let manager = Member { manager: true, ..before(ANY) };
        // The addresses of interfaces that others reach, all others, how it reaches managers; what it is from then on.
        for (case, before, reached, others, way, want) in [
            ("as it was", before(ANY), vec![OLD], vec![], Some(OLD), None),
            ("one more", before(ANY), vec![OLD, NEW], vec![], Some(NEW), None),
            ("another", before(ANY), vec![NEW], vec![], Some(NEW), Some(member(NEW, ANY))),
            ("listens there", before(OLD), vec![NEW], vec![], Some(NEW), Some(member(NEW, NEW))),
            ("on the loopback", before(ANY), vec![NEW], vec![OLD], Some(NEW), None),
            ("none at all", before(ANY), vec![], vec![], None, None),
            ("no way to the managers", before(ANY), vec![NEW], vec![], None, None),
            ("only by the loopback", before(ANY), vec![NEW], vec!["127.0.0.1"], Some("127.0.0.1"), None),
            ("given", given, vec![NEW], vec![], Some(NEW), None),
            ("NAT", nat, vec![NEW], vec![], Some(NEW), None),
            ("a manager", manager, vec![NEW], vec![], Some(NEW), None),
        ] {
            let ip = |ip: &str| ip.parse::<IpAddr>().unwrap();
            let locals: Vec<_> = reached.iter().map(|a| Local { interface: "eth0".into(), ip: ip(a) }).collect();
            let all: Vec<_> = reached.iter().chain(&others).map(|a| ip(a)).collect();
            assert_eq!(moved(&before, &all, &locals, |_| way.map(ip)), want, "{case}");
        }
    }
}
