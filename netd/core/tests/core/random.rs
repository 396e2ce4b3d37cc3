//! States of a node made from seeds.

use std::net::IpAddr;

use orch_model::service::{PortConfig, PublishMode};
use orch_netd_core::desired::LocalTask;

use super::scenario::{INGRESS, Scenario, port};

/// Numbers from a seed (xorshift): the same on every machine.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u8) -> u8 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u8::try_from(self.0 % u64::from(limit)).unwrap()
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

fn random(numbers: &mut Numbers, first_task: u8, is_internal: bool) -> Scenario {
    let mut scenario = Scenario::new(1 + numbers.below(3));
    for network in 0..3 {
        if numbers.below(4) > 0 {
            scenario = scenario.network(network, network == 2 && is_internal);
            for service in 1..=numbers.below(3) {
                let ports = if network == INGRESS {
                    vec![odd(numbers, port(8000 + u16::from(service), 80, PublishMode::Ingress))]
                } else {
                    vec![]
                };
                scenario = scenario.service(network, service, ports);
            }
            for task in 1..=numbers.below(6) {
                let (service, node) = (1 + numbers.below(2), 1 + numbers.below(3));
                scenario = scenario.endpoint(network, task, service, node, numbers.coin());
            }
        }
    }
    for task in first_task..=first_task + numbers.below(4) {
        let networks: Vec<_> = (0..3).filter(|_| numbers.coin()).collect();
        let on_node = port(9000 + u16::from(task), 80, PublishMode::Host);
        let ports = if numbers.coin() { vec![odd(numbers, on_node)] } else { vec![] };
        scenario = scenario.task(task, &networks, ports, numbers.below(4) == 0);
    }
    let scenario = if numbers.coin() { scenario.dual_stack(1) } else { scenario };
    let scenario = if numbers.coin() { scenario.way_out_v6() } else { scenario };
    let unable = if numbers.coin() { &[2][..] } else { &[] };
    // Whether this node can, does not change while its daemon runs.
    scenario.encrypted(if numbers.coin() { 2 } else { u8::MAX }, unable)
}

/// Perhaps on one address, perhaps with the client hidden.
fn odd(numbers: &mut Numbers, port: PortConfig) -> PortConfig {
    let host_ip = numbers.coin().then_some(IpAddr::from([127, 0, 0, 1]));
    PortConfig { masquerade: numbers.coin(), host_ip, ..port }
}

/// Two states of one node. A task never changes what it is attached to; it may die, and networks may come and go.
pub(crate) fn seeded(seed: u64) -> (Scenario, Scenario) {
    let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let is_internal = numbers.coin();
    let first = random(&mut numbers, 1, is_internal);
    let mut second = random(&mut numbers, 11, is_internal);
    for (id, task) in &first.tasks {
        if numbers.coin() {
            second.tasks.insert(id.clone(), LocalTask { down: task.down || numbers.coin(), ..task.clone() });
        }
    }
    (first, second)
}
