//! Who breaks things: at every moment something else, all of it possible on real machines.

use std::time::Duration;

use rand::Rng;
use tokio::time::{sleep, timeout};

use super::{net::Weather, record::Violation, world::World};

/// How long a leader may take to say that it leads.
const CERTAINTY_LIMIT: Duration = Duration::from_secs(1);
const MEMBER_PATIENCE: Duration = Duration::from_secs(6);
const HOUR_MS: i64 = 3_600_000;

#[derive(Debug, Clone, Copy)]
enum Deed {
    /// Some on this side, the others on that.
    Split,
    /// One hears nothing, or nobody hears it.
    Deafen,
    Isolate,
    Heal,
    BadWeather,
    FairWeather,
    Crash,
    CrashAll,
    Pause,
    SlowDisk,
    BreakDisk,
    Jump,
    Transfer,
    Compact,
    Leave,
    Wipe,
}

/// The more often, the likelier.
const DEEDS: &[Deed] = &[
    Deed::Split,
    Deed::Split,
    Deed::Deafen,
    Deed::Deafen,
    Deed::Isolate,
    Deed::Isolate,
    Deed::Heal,
    Deed::Heal,
    Deed::Heal,
    Deed::Heal,
    Deed::BadWeather,
    Deed::BadWeather,
    Deed::FairWeather,
    Deed::Crash,
    Deed::Crash,
    Deed::Crash,
    Deed::Crash,
    Deed::CrashAll,
    Deed::CrashAll,
    Deed::Pause,
    Deed::Pause,
    Deed::Pause,
    Deed::SlowDisk,
    Deed::SlowDisk,
    Deed::BreakDisk,
    Deed::Jump,
    Deed::Transfer,
    Deed::Transfer,
    Deed::Compact,
    Deed::Leave,
    Deed::Wipe,
];

impl World {
    /// Breaks things for this long.
    pub(super) async fn break_things(&self, length: Duration) -> Result<(), Violation> {
        let end = self.now() + length;
        while self.now() < end {
            let (pause_ms, deed) = {
                let mut state = self.lock();
                let pause_ms = state.random.random_range(50..900);
                let deed = DEEDS[state.random.random_range(0..DEEDS.len())];
                (pause_ms, deed)
            };
            sleep(Duration::from_millis(pause_ms)).await;
            if let Some(violation) = self.lock().violation.take() {
                return Err(violation);
            }
            self.restart_stopped().await?;
            self.commit_deed(deed).await?;
        }
        Ok(())
    }

    async fn commit_deed(&self, deed: Deed) -> Result<(), Violation> {
        match deed {
            Deed::Split => self.split(),
            Deed::Deafen => self.deafen(),
            Deed::Isolate => self.isolate(),
            Deed::Heal => {
                self.tell(|| "the network heals".to_owned());
                self.net.heal();
            }
            Deed::BadWeather => {
                let weather = {
                    let random = &mut self.lock().random;
                    let loss = random.random_range(0.0..0.3);
                    let duplicates = random.random_range(0.0..0.2);
                    Weather { loss, duplicates, longest_ms: random.random_range(10..400) }
                };
                self.tell(|| format!("{weather:?}"));
                self.net.set_weather(weather);
            }
            Deed::FairWeather => self.net.set_weather(Weather::FAIR),
            Deed::Crash => self.crash_one()?,
            Deed::CrashAll => {
                self.tell(|| "power cut".to_owned());
                let count = self.lock().hosts.len();
                for number in 0..count {
                    self.crash_for_a_while(number)?;
                }
            }
            Deed::Pause => self.pause(),
            Deed::SlowDisk => self.slow_disk(),
            Deed::BreakDisk => {
                if let Some(number) = self.any(|_| true) {
                    self.tell(|| format!("the disk of m{} fails", number + 1));
                    let host = &mut self.lock().hosts[number];
                    host.was_broken = true;
                    host.disk.fail();
                }
            }
            Deed::Jump => self.jump(),
            Deed::Transfer => self.transfer(),
            Deed::Compact => {
                if let Some((number, leader)) = self.leader() {
                    self.tell(|| format!("m{} compacts", number + 1));
                    leader.life.clone().spawn(async move { leader.consensus.compact().await.is_ok() });
                }
            }
            Deed::Leave => self.leave().await?,
            Deed::Wipe => self.lose_disk().await?,
        }
        Ok(())
    }

    /// A random manager that runs and is so.
    fn any(&self, is_so: impl Fn(usize) -> bool) -> Option<usize> {
        let mut state = self.lock();
        let running = |n: &usize| state.hosts[*n].running.as_ref().is_some_and(|r| !r.life.is_paused());
        let numbers: Vec<usize> = (0..state.hosts.len()).filter(running).filter(|n| is_so(*n)).collect();
        state.pick(&numbers)
    }

    /// Mostly the leader: that is where it hurts.
    fn victim(&self) -> Option<usize> {
        let leader = self.leader().map(|(number, _)| number);
        let prefers_leader = self.lock().random.random_bool(0.6);
        leader.filter(|_| prefers_leader).or_else(|| self.any(|_| true))
    }

    fn addrs(&self) -> Vec<String> {
        self.lock().hosts.iter().map(|host| host.addr().to_owned()).collect()
    }

    fn split(&self) {
        let addrs = self.addrs();
        let sides: Vec<bool> = {
            let random = &mut self.lock().random;
            addrs.iter().map(|_| random.random_bool(0.5)).collect()
        };
        self.tell(|| format!("a split: {sides:?}"));
        for (a, side) in addrs.iter().zip(&sides) {
            for (b, _) in addrs.iter().zip(&sides).filter(|(_, other)| *other != side) {
                self.net.cut(a, b);
            }
        }
    }

    fn deafen(&self) {
        let Some(number) = self.victim() else { return };
        let (addrs, hears) = (self.addrs(), self.lock().random.random_bool(0.5));
        let what = if hears { "speaks into the void" } else { "is deaf" };
        self.tell(|| format!("m{} {what}", number + 1));
        for other in addrs.iter().filter(|other| **other != addrs[number]) {
            let (from, to) = if hears { (&addrs[number], other) } else { (other, &addrs[number]) };
            self.net.cut(from, to);
        }
    }

    fn isolate(&self) {
        let Some(number) = self.victim() else { return };
        self.tell(|| format!("m{} is cut off", number + 1));
        let addrs = self.addrs();
        for other in addrs.iter().filter(|other| **other != addrs[number]) {
            self.net.cut(&addrs[number], other);
            self.net.cut(other, &addrs[number]);
        }
    }

    fn crash_one(&self) -> Result<(), Violation> {
        self.victim().map_or(Ok(()), |number| self.crash_for_a_while(number))
    }

    fn crash_for_a_while(&self, number: usize) -> Result<(), Violation> {
        if self.running(number).is_none() {
            return Ok(());
        }
        let away_ms = {
            let mut state = self.lock();
            state.summary.crashes += 1;
            let longest = if state.random.random_bool(0.5) { 300 } else { 5000 };
            state.random.random_range(0..longest)
        };
        self.tell(|| format!("m{} crashes, for {away_ms} ms", number + 1));
        self.crash(number)?;
        let world = self.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(away_ms)).await;
            if let Err(violation) = world.start(number).await {
                world.lock().violation.get_or_insert(violation);
            }
        });
        Ok(())
    }

    /// SIGSTOP; longer than an election takes, sometimes.
    fn pause(&self) {
        let Some(number) = self.victim() else { return };
        let Some(running) = self.running(number) else { return };
        let pause_ms = {
            let mut state = self.lock();
            state.summary.pauses += 1;
            state.random.random_range(100..6000)
        };
        self.tell(|| format!("m{} stands still for {pause_ms} ms", number + 1));
        running.life.pause(true);
        tokio::spawn(async move {
            sleep(Duration::from_millis(pause_ms)).await;
            running.life.pause(false);
        });
    }

    fn slow_disk(&self) {
        let Some(number) = self.any(|_| true) else { return };
        let mut state = self.lock();
        let flush_ms = if state.random.random_bool(0.5) { 2 } else { state.random.random_range(50..1500) };
        let host = &state.hosts[number];
        host.disk.set_flush_ms(flush_ms);
        if let Some(running) = &host.running {
            running.life.set_disk_ms(flush_ms);
        }
        drop(state);
        self.tell(|| format!("the disk of m{} takes up to {flush_ms} ms", number + 1));
    }

    fn jump(&self) {
        let Some(number) = self.victim() else { return };
        let by_ms = self.lock().random.random_range(-HOUR_MS..HOUR_MS);
        self.tell(|| format!("the clock of m{} jumps by {by_ms} ms", number + 1));
        self.lock().hosts[number].jump(by_ms);
    }

    fn transfer(&self) {
        let Some((number, leader)) = self.leader() else { return };
        self.tell(|| format!("m{} hands over", number + 1));
        self.lock().summary.transfers += 1;
        leader.life.clone().spawn(async move { leader.consensus.hand_over().await });
    }

    /// A manager is demoted, and joins again with a new disk, as another member.
    async fn leave(&self) -> Result<(), Violation> {
        let Some(number) = self.victim() else { return Ok(()) };
        if self.lock().replacing.is_some() {
            return Ok(());
        }
        let Some((leader_number, leader)) = self.leader() else { return Ok(()) };
        let raft_id = self.lock().hosts[number].raft_id;
        self.tell(|| format!("m{} is to leave, says m{}", number + 1, leader_number + 1));
        let removing = async {
            if leader_number == number {
                leader.consensus.hand_over().await;
                return false;
            }
            leader.consensus.remove_member(raft_id, false).await.is_ok()
        };
        if !timeout(MEMBER_PATIENCE, removing).await.unwrap_or(false) {
            self.tell(|| format!("m{} has not left", number + 1));
            self.lock().may_lack_members = true;
            return Ok(());
        }
        self.lock().summary.membership_changes += 1;
        self.replace(number).await
    }

    /// A disk dies with everything on it.
    async fn lose_disk(&self) -> Result<(), Violation> {
        if self.lock().replacing.is_some() {
            return Ok(());
        }
        // A removal without an answer may have gone through: of two managers, none can be spared.
        if self.lock().may_lack_members && !self.are_all_members().await {
            return Ok(());
        }
        self.lock().may_lack_members = false;
        let Some(number) = self.victim() else { return Ok(()) };
        self.tell(|| format!("m{} loses its disk", number + 1));
        self.replace(number).await
    }

    /// Whether every machine is a voter for sure.
    async fn are_all_members(&self) -> bool {
        let Some((_, leader)) = self.leader() else { return false };
        if !matches!(timeout(CERTAINTY_LIMIT, leader.consensus.read_barrier()).await, Ok(Ok(()))) {
            return false;
        }
        let (voters, _) = leader.consensus.voters();
        let are_voters = self.lock().hosts.iter().all(|host| voters.contains(&host.raft_id));
        are_voters && !leader.consensus.is_between_members()
    }

    async fn replace(&self, number: usize) -> Result<(), Violation> {
        while self.lock().hosts[number].is_starting {
            sleep(Duration::from_millis(10)).await;
        }
        self.crash(number)?;
        let (raft_id, member) = {
            let mut state = self.lock();
            state.replacing = Some(number);
            state.next_raft_id += 1;
            let raft_id = state.next_raft_id;
            let host = &mut state.hosts[number];
            let wiped = host.wipe(raft_id);
            wiped.map_err(|e| Violation::DoesNotStart { host: host.name.clone(), reason: e.to_string() })?;
            (raft_id, host.member.clone())
        };
        self.start(number).await?;
        let world = self.clone();
        // It asks until somebody takes it.
        tokio::spawn(async move {
            loop {
                sleep(Duration::from_millis(500)).await;
                if world.lock().replacing != Some(number) {
                    return;
                }
                let Some((_, leader)) = world.leader() else { continue };
                let adding = leader.consensus.add_member(raft_id, member.clone(), || true);
                if let Ok(Ok(())) = timeout(MEMBER_PATIENCE, adding).await {
                    let mut state = world.lock();
                    state.replacing = None;
                    state.summary.membership_changes += 1;
                    return;
                }
            }
        });
        Ok(())
    }
}
