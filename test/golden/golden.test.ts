/** Every model family on the CPU against Hugging Face transformers. */
import { specifyFamilies } from './families';

specifyFamilies('cpu');
