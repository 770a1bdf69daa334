/** Models with sliding windows on the GPU against transformers. */
import { specifySlidingWindows } from '../support/slidingWindows';

specifySlidingWindows('cuda');
