//! Which events are asked for: pure.

use std::net::SocketAddr;

use super::{Event, Verdict};

/// What is asked for; everything where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Namespace and name of a pod that dials or is dialled.
    pub pod: Option<String>,
    /// Namespace and name of a service, or a namespace.
    pub service: Option<String>,
    /// Any of these; all where there are none.
    pub verdicts: Vec<Verdict>,
}

impl Filter {
    /// Whether an event is asked for.
    pub fn admits(&self, event: &Event) -> bool {
        let is_pod = |pod: &String| event.source_pod == *pod || event.backend_pod == *pod;
        self.pod.as_ref().is_none_or(is_pod)
            && self.admits_service(&event.service)
            && (self.verdicts.is_empty() || self.verdicts.contains(&event.verdict))
    }

    /// Whether the service with this namespace and name is asked for.
    pub fn admits_service(&self, service: &str) -> bool {
        self.service.as_ref().is_none_or(|wanted| match service.split_once('/') {
            Some((namespace, _)) => service == wanted || namespace == wanted,
            None => false,
        })
    }
}

/// The address of `address:port`.
pub fn address_of(text: &str) -> Option<std::net::IpAddr> {
    Some(text.parse::<SocketAddr>().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(verdict: Verdict, source: &str, service: &str, backend: &str) -> Event {
        Event {
            verdict,
            source_pod: source.into(),
            service: service.into(),
            backend_pod: backend.into(),
            ..Event::default()
        }
    }

    #[test]
    fn an_event_has_to_be_all_that_is_asked_for() {
        let is = event(Verdict::Dropped, "a/client", "b/web", "b/web-1");
        let admits = |pod: &str, service: &str, verdicts: &[Verdict]| {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            Filter { pod: some(pod), service: some(service), verdicts: verdicts.to_vec() }
                .admits(&is)
        };
        assert!(admits("", "", &[]));
        assert!(admits("a/client", "b/web", &[Verdict::Refused, Verdict::Dropped]));
        assert!(admits("b/web-1", "b", &[]));
        assert!(!admits("a/other", "b/web", &[Verdict::Dropped]));
        assert!(!admits("a/client", "b/we", &[]), "a name is whole");
        assert!(!admits("", "a", &[]), "the service's namespace, not the client's");
        assert!(!admits("", "", &[Verdict::Translated]));
        let nobody = event(Verdict::Dropped, "", "", "");
        let of = Filter { service: Some("b".into()), ..Filter::default() };
        assert!(!of.admits(&nobody));
    }
}
