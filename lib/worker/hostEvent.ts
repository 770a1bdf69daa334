/** Events that JavaScript signals. */
import type { ReadyEvent } from '../contract/modelRunnerOutput';
import { native } from '../native';

// Merged with the class: its methods are the addon's, which a class cannot declare as methods.
// eslint-disable-next-line @typescript-eslint/no-unsafe-declaration-merging, @typescript-eslint/no-empty-object-type -- as above
export interface HostEvent extends ReadyEvent {}

/**
 * A one-shot event for the `ready` of a JavaScript worker's AsyncModelRunnerOutput: the worker
 * calls `signal` once the output can be read; a second call throws InvalidStateError. It is the
 * addon's event, which an output thread can wait for, and keeps the process alive only once it is
 * signalled.
 */
// eslint-disable-next-line @typescript-eslint/no-unsafe-declaration-merging, @typescript-eslint/no-extraneous-class -- as above
export class HostEvent {
  /** Throws AddonUnavailableError. */
  constructor() {
    const { Event } = native();
    // The addon is loaded by its first use; from then on this is a subclass of its class.
    if (!(HostEvent.prototype instanceof Event)) {
      Object.setPrototypeOf(HostEvent.prototype, Event.prototype as object);
    }
    // eslint-disable-next-line @typescript-eslint/no-unsafe-class-instance-assignment -- of new.target, this class or a subclass
    return Reflect.construct(Event, [], new.target);
  }
}
