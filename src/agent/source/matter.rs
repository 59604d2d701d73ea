//! What of an object matters to a node: the rest is not kept, and its changes are no news. Pure.

use crate::api::gatewaynode::{GatewayNodeStatus, InterfaceStatus};
use crate::api::mapping::MachineTarget;
use crate::api::network::ActiveGateway;
use crate::api::{GatewayNode, NatMapping, NatMappingStatus, StagingNetwork};

/// Leaves of a report what is looked at: hundreds of nodes report.
pub(super) fn trim_gateway(gateway: &mut GatewayNode) {
    let status = gateway.status.take();
    gateway.status = status.map(|status| GatewayNodeStatus {
        interfaces: status.interfaces,
        ..GatewayNodeStatus::default()
    });
    let meta = &mut gateway.metadata;
    (meta.annotations, meta.labels) = (None, None);
}

/// Leaves of a mapping what is judged, and what tells it from its successor: what people note in labels and annotations is often longer than all the rest. Of the status
/// that is the address of the virtual machine that the mapping names: where traffic is delivered to.
pub(super) fn trim(mapping: &mut NatMapping) {
    let machine = mapping.spec.target.virtual_machine_ref.as_ref();
    let found = mapping.status.take().and_then(|status| status.target);
    mapping.status = found.zip(machine).map(|(found, _)| NatMappingStatus {
        target: Some(Box::new(MachineTarget {
            virtual_machine: found.virtual_machine,
            interface: found.interface,
            address: found.address,
            ..MachineTarget::default()
        })),
        ..NatMappingStatus::default()
    });
    let meta = &mut mapping.metadata;
    (meta.annotations, meta.labels) = (None, None);
    (meta.finalizers, meta.owner_references) = (None, None);
}

pub(super) fn active(network: &StagingNetwork) -> Option<&ActiveGateway> {
    network.status.as_ref()?.active_gateway.as_ref()
}

pub(super) fn api_server(network: &StagingNetwork) -> &[String] {
    network.status.as_ref().map_or(&[], |status| &status.api_server_addresses)
}

pub(super) fn interfaces(gateway: &GatewayNode) -> Option<&Vec<InterfaceStatus>> {
    gateway.status.as_ref().map(|s| &s.interfaces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::mapping::AddressState;

    fn after(machine: bool, address: &str, state: AddressState) -> NatMapping {
        let mut object = crate::controller::testing::mapping("default", "vm03");
        object.spec.target.virtual_machine_ref = machine.then(Box::default);
        object.status = Some(NatMappingStatus {
            observed_generation: Some(1),
            target: Some(Box::new(MachineTarget {
                address: Some(address.into()),
                state: Some(state),
                ..MachineTarget::default()
            })),
            ..NatMappingStatus::default()
        });
        trim(&mut object);
        object
    }

    #[test]
    fn of_a_status_only_the_address_of_a_machine_counts() {
        let before = after(true, "192.168.200.3", AddressState::Reported);
        assert_eq!(before, after(true, "192.168.200.3", AddressState::Held));
        assert_ne!(before, after(true, "192.168.200.4", AddressState::Reported));
        assert_eq!(after(false, "192.168.200.3", AddressState::Reported).status, None);
    }
}
