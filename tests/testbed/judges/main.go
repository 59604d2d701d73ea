// Command judges says what two programs that are not ours make of an object's status: kstatus (sigs.k8s.io/cli-utils), by which GitOps engines
// and tools wait, and the checker of conditions that Flux has for authors of controllers (fluxcd/pkg/runtime/conditions/check).
//
//	judges --negative TYPE,TYPE,…
//
// One JSON object a line on stdin, one JSON verdict a line on stdout, in the same order, until stdin ends.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log"
	"os"
	"strings"

	"github.com/fluxcd/pkg/runtime/conditions"
	"github.com/fluxcd/pkg/runtime/conditions/check"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

// longest is the longest line that is read: the API server takes objects of 1.5 MiB.
const longest = 4 << 20

type verdict struct {
	// Kstatus is Current, InProgress, Failed, Terminating, NotFound or Unknown.
	Kstatus string `json:"kstatus"`
	// Message is why.
	Message string `json:"message"`
	// Fails are the violations that Flux' checker found, Warns what it advises against.
	Fails []string `json:"fails"`
	Warns []string `json:"warns"`
	// Error is what is wrong with the line itself.
	Error string `json:"error,omitempty"`
}

func main() {
	negative := flag.String("negative", "", "condition types that say something bad by being True, the most telling first")
	flag.Parse()
	if *negative == "" {
		log.Fatal("--negative is missing")
	}
	known := &check.Conditions{NegativePolarity: strings.Split(*negative, ",")}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(make([]byte, 0, 1<<16), longest)
	answers := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		if err := answers.Encode(judge(lines.Bytes(), known)); err != nil {
			log.Fatal(err)
		}
	}
	if err := lines.Err(); err != nil {
		log.Fatal(err)
	}
}

func judge(line []byte, known *check.Conditions) verdict {
	object := &unstructured.Unstructured{}
	// Not json.Unmarshal: that makes floating-point numbers of generations.
	if err := object.UnmarshalJSON(line); err != nil {
		return verdict{Error: err.Error()}
	}
	result, err := status.Compute(object)
	if err != nil {
		return verdict{Error: err.Error()}
	}
	checker := check.NewChecker(nil, known)
	checker.DisableFetch = true
	fail, warn := checker.Check(context.Background(), conditions.UnstructuredGetter(object))
	return verdict{
		Kstatus: result.Status.String(),
		Message: result.Message,
		Fails:   texts(fail),
		Warns:   texts(warn),
	}
}

// texts are the messages of an aggregate, one each.
func texts(err error) []string {
	var all interface{ Errors() []error }
	if !errors.As(err, &all) {
		return []string{}
	}
	said := []string{}
	for _, one := range all.Errors() {
		said = append(said, strings.TrimSpace(one.Error()))
	}
	return said
}
