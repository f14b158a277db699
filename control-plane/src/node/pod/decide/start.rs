//! Keeping a container running: its image, what it refers to, its start, and the wait before the
//! next.

use std::{net::IpAddr, time::Duration};

use k8s_openapi::{api::core::v1::Container as Spec, jiff::Timestamp};

use super::{
    super::{
        super::runtime::{ContainerState, Image},
        backoff, config,
        observed::{Object, Pull},
        privileges,
        state::Action,
    },
    Context, RestartPolicy, full_name,
};

/// How long after an object was missing it is looked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

impl Context<'_> {
    /// Sees to it that a container runs, or has run to its end.
    pub(super) fn keep_running(
        &mut self,
        spec: &Spec,
        policy: RestartPolicy,
        addresses: &[IpAddr],
    ) {
        let Some(latest) = self.seen.latest(&spec.name) else {
            return self.start(spec, addresses, 0, Duration::ZERO);
        };
        match &latest.state {
            // A crash between the two calls: the second is made now.
            ContainerState::Created => {
                self.start(spec, addresses, latest.attempt, latest.backoff);
            }
            ContainerState::Running { .. } => {
                if self.seen.failed_hooks.contains(&latest.id) {
                    self.stop(latest, backoff::later(self.now, self.grace()));
                } else if let Some(probe) = self.must_restart(spec, latest) {
                    let grace = probe.termination_grace_period_seconds;
                    let grace = grace.and_then(|seconds| u64::try_from(seconds).ok());
                    let grace = grace.map_or_else(|| self.grace(), Duration::from_secs);
                    self.stop(latest, backoff::later(self.now, grace));
                }
            }
            ContainerState::Exited { started_at, finished_at, exit_code, .. } => {
                // An init container is run again in a new sandbox, whatever its end before.
                let of_present = self.seen.present(&spec.name).is_some();
                let is_init = !self.spec.containers.iter().any(|one| one.name == spec.name);
                if !policy.restarts(*exit_code) && (of_present || !is_init) {
                    return;
                }
                let restart = backoff::restart(*started_at, *finished_at, latest.backoff);
                if restart.at > self.now {
                    self.wake(restart.at);
                    let message = format!(
                        "back-off {} restarting failed container={} pod={}",
                        backoff::text(restart.wait),
                        spec.name,
                        full_name(self.pod)
                    );
                    return self.wait(&spec.name, "CrashLoopBackOff", Some(message));
                }
                self.start(spec, addresses, latest.attempt + 1, restart.next_wait);
            }
        }
    }

    fn start(&mut self, spec: &Spec, addresses: &[IpAddr], attempt: u32, next_wait: Duration) {
        let name = spec.name.as_str();
        let Some(image) = self.image(spec) else { return };
        let seen = self.seen;
        if self.inputs().is_none() {
            if let Some(failure) = seen.failures.get(&Object::Inputs) {
                self.wait(name, "CreateContainerConfigError", Some(failure.message.clone()));
            }
            return;
        }
        let Some(inputs) = &seen.inputs else { return };
        let sources = self.sources(addresses, inputs);
        let made = privileges::verify_non_root(self.pod, spec, &image.user)
            .map_err(|why| format!("{why} (pod: {:?}, container: {name})", full_name(self.pod)))
            .and_then(|()| config::container(sources, spec, attempt, next_wait));
        let (config, volumes) = match made {
            Ok(made) => made,
            Err(message) => {
                self.look_again(inputs.at);
                return self.wait(name, "CreateContainerConfigError", Some(message));
            }
        };
        let object = Object::Container(name.to_owned());
        let sandbox = self.seen.ready_sandbox().map(|sandbox| sandbox.id.clone());
        if let (true, Some(sandbox)) = (self.free(&object), sandbox) {
            let post_start = self.post_start(spec).map(Box::new);
            let config = Box::new(config);
            self.act(Action::StartContainer { sandbox, config, volumes, post_start });
        } else if let Some(failure) = self.seen.failures.get(&object) {
            self.wait(name, "RunContainerError", Some(failure.message.clone()));
        }
    }

    /// What is missing may have been made meanwhile.
    fn look_again(&mut self, looked_at: Timestamp) {
        let again = backoff::later(looked_at, LOOK_AGAIN);
        if again > self.now {
            self.wake(again);
        } else {
            self.fetch_inputs();
        }
    }

    /// The container's image where it is there; else has it pulled, or waits for the next try.
    fn image(&mut self, spec: &Spec) -> Option<Image> {
        let request = config::image_request(spec);
        match self.seen.pull(&request) {
            Some(Pull::Present(image)) => return Some(image.clone()),
            Some(Pull::Failed(failure)) => {
                let wait = backoff::pull(failure.attempts);
                let (again, half) =
                    (backoff::later(failure.at, wait), backoff::later(failure.at, wait / 2));
                // The fresh failure is shown for a while, then that the next try is awaited.
                let message = failure.message.clone();
                if self.now < half {
                    self.wake(half);
                    self.wait(&spec.name, "ErrImagePull", Some(message));
                } else {
                    let message = format!(
                        "Back-off pulling image {:?}: ErrImagePull: {message}",
                        request.reference
                    );
                    self.wait(&spec.name, "ImagePullBackOff", Some(message));
                }
                if again > self.now {
                    self.wake(again);
                    return None;
                }
            }
            None => {}
        }
        let asked = Action::PullImage(request);
        if !self.seen.busy(&Object::Image) && !self.decision.actions.contains(&asked) {
            self.act(asked);
        }
        None
    }
}
