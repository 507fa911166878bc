// Command promql reads the alert rules and the dashboard, as Prometheus does, and prints what they ask of the metrics, as JSON: for each selector
// the metric's name, the labels that are matched on or grouped by, and the values that are matched with.
//
// Why not promtool: it says whether rules can be read, but not which metrics and labels they need; and it does not read dashboards.
package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"regexp"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

// Need is what an expression asks of the metrics.
type Need struct {
	Where    string    `json:"where"`
	Metrics  []string  `json:"metrics"`
	Labels   []string  `json:"labels"`
	Matchers []Matcher `json:"matchers"`
}

// Matcher is a condition on a label.
type Matcher struct {
	Label string `json:"label"`
	Type  string `json:"type"`
	Value string `json:"value"`
}

// Grafana puts values for these before Prometheus sees them.
var variables = regexp.MustCompile(`\$__rate_interval|\$__range|\$__interval`)
var others = regexp.MustCompile(`\$\{?\w+\}?`)
var promql = parser.NewParser(parser.Options{})

func main() {
	if len(os.Args) != 3 {
		fail(fmt.Errorf("usage: promql ALERTS DASHBOARD"))
	}
	needs, err := rules(os.Args[1])
	fail(err)
	more, err := dashboard(os.Args[2])
	fail(err)
	fail(json.NewEncoder(os.Stdout).Encode(append(needs, more...)))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func rules(path string) ([]Need, error) {
	groups, errs := rulefmt.ParseFile(path, false, model.LegacyValidation, promql, slog.Default())
	if len(errs) > 0 {
		return nil, fmt.Errorf("%v", errs)
	}
	var needs []Need
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			found, err := need(rule.Alert+rule.Record, rule.Expr)
			if err != nil {
				return nil, err
			}
			needs = append(needs, found)
		}
	}
	return needs, nil
}

// dashboard reads every "expr" of the document, wherever it stands, and the queries of its variables.
func dashboard(path string) ([]Need, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var document any
	if err := json.Unmarshal(text, &document); err != nil {
		return nil, err
	}
	var needs []Need
	var walk func(any, string) error
	walk = func(value any, title string) error {
		switch value := value.(type) {
		case map[string]any:
			if name, ok := value["title"].(string); ok {
				title = name
			}
			if expr, ok := value["expr"].(string); ok {
				found, err := need("dashboard: "+title, others.ReplaceAllString(variables.ReplaceAllString(expr, "1m"), "any"))
				if err != nil {
					return err
				}
				needs = append(needs, found)
			}
			for _, inner := range value {
				if err := walk(inner, title); err != nil {
					return err
				}
			}
		case []any:
			for _, inner := range value {
				if err := walk(inner, title); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return needs, walk(document, "")
}

func need(where, expr string) (Need, error) {
	tree, err := promql.ParseExpr(expr)
	if err != nil {
		return Need{}, fmt.Errorf("%s: %w: %s", where, err, expr)
	}
	found := Need{Where: where, Metrics: []string{}, Labels: []string{}, Matchers: []Matcher{}}
	parser.Inspect(tree, func(node parser.Node, _ []parser.Node) error {
		switch node := node.(type) {
		case *parser.VectorSelector:
			found.Metrics = append(found.Metrics, node.Name)
			for _, matcher := range node.LabelMatchers {
				if matcher.Name != labels.MetricName {
					found.Labels = append(found.Labels, matcher.Name)
					found.Matchers = append(found.Matchers, Matcher{matcher.Name, matcher.Type.String(), matcher.Value})
				}
			}
		case *parser.AggregateExpr:
			found.Labels = append(found.Labels, node.Grouping...)
		}
		return nil
	})
	return found, nil
}
